"""What the command line does with its arguments, beside calling the library: files of tables, conditions, words."""
