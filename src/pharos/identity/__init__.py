"""Who is asking: tenants, people, sign-in, the Principal."""
