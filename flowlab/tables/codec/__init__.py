"""Tables <-> the matrices that models see."""
