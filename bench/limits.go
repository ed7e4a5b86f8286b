package main

func limits(options) scenario { return scenario{name: "limits"} }
