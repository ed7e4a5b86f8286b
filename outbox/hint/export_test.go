package hint

const (
	Gap     = gap
	LongGap = longGap
	Window  = window
)

var RestAfter = restAfter
