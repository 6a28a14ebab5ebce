"""The 9P protocol, sans-IO and on the standard library alone.

    fields     the kinds of field
    messages   every message, declared once
    codec      encoders and decoders, derived from the declarations
    server     the server's half of a session
    client     the client's half of a session
"""
