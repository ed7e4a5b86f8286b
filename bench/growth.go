package main

func growth(options) scenario { return scenario{name: "growth"} }
