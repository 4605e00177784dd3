"""Settings: their one account (`schema`), rules (`checks`), folders (`home`) and composition (`compose`)."""
