"""The compiled libraries: finding, loading, and registering what they implement."""
