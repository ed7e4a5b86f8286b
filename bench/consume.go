package main

func consume(options) scenario { return scenario{name: "consume"} }
