"""tood analyze: what a detector or its training does, and why."""
