"""Messages of the protocol, generated from the .proto files beside them; see __main__."""
