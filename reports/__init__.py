"""What people read: the screen of a failure, the matrix of ops and devices."""
