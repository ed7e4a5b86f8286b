package main

func signUp(options) scenario { return scenario{name: "sign-up"} }
