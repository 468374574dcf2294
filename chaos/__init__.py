"""The lab, the clinics' traffic and the faults."""
