"""Running a bundle under a real tritonserver: finding, starting, watching it, and leaving nothing behind."""
