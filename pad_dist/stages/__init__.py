"""The training stages: what each is made of, where it starts from, how it is trained and what it leaves."""
