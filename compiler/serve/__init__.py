"""Running a bundle under a real tritonserver: finding it, starting it, watching it, and leaving nothing behind."""
