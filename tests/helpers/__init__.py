"""What several test files share. A test file imports nothing from another test file."""
