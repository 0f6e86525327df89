"""Single questions measured: packing, decoding, XLNet's second stream, one recipe's step."""
