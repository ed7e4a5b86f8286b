package main

func latency(options) scenario { return scenario{name: "latency"} }
