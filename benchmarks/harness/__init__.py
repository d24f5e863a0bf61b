"""What the cases share: options, reports, timing, memory, tables, compiled programs, random inputs."""
