"""The sections of the reliability page: each module measures one kind of fault, by its `section(scale)`."""
