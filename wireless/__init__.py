"""The radio and the device: channel, rate, latency and energy, in SI units and float64."""
