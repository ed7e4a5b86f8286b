package main

func control(options) scenario { return scenario{name: "control"} }
