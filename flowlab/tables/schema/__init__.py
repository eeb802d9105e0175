"""What a table's columns are: the record of each, how it is found out, and rules between them."""

from flowlab.tables.schema.column import ColumnSchema
from flowlab.tables.schema.schema import Schema

__all__ = ["ColumnSchema", "Schema"]
