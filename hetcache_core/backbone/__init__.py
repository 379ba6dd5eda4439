"""What a backbone is: the adapter, its trunk, what it costs, and how calls are routed to it."""
