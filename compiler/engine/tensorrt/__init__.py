"""TensorRT plans: graphs are parsed, checked against targets and built, each in a process of its own."""
