"""Who may do what: policy rows now, certificates and tokens on the same grammar."""
