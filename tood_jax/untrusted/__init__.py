"""Read untrusted JSON, text and files, and print untrusted text. Imports nothing of the package."""
