"""Plain data and the words of the field: cases, layouts, element types, ops, bounds."""
