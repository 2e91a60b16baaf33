"""What IMSM costs, measured side by side with plain PEFT and with the libraries' own ways."""
