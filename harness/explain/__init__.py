"""From a failing verdict to what a person can act on."""
