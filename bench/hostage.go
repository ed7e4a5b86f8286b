package main

func hostage(options) scenario { return scenario{name: "hostage"} }
