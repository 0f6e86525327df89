"""A run's folder and what is reported while it trains: metrics, console, trackers, signals, hardware."""
