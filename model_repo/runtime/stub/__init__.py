"""The thin side of serving: what runs inside Triton's Python stubs. Imports numpy and the engine client, no
more.

A crash of native code must not take a stub with it (Triton neither notices nor restarts one), so everything
heavy lives in the engine process behind the Unix socket.
"""
