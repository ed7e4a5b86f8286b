package main

func drain(options) scenario { return scenario{name: "drain"} }
