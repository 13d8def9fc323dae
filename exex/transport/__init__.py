"""How messages travel. Each module is one transport with the same contract, `transport.base.Link`."""
