"""Sections of the reliability page: each module measures one kind of fault and writes its part."""
