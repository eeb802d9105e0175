"""DataFrames in and out: cells, files, other libraries' tables, checks at the door."""
