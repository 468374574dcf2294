"""`script/chaos`: faults by the hour against a running lab, clinics at work meanwhile, and a verdict on every promise."""
