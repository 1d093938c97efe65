"""What `cacovid bench` measures: every op beside what it replaces, on the device's own clock."""
