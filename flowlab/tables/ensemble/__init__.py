"""The members that `FlowDensity` mixes: what they are, how they are fitted and weighed."""
