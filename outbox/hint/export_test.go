package hint

const (
	Gap     = gap
	LongGap = longGap
)

var RestAfter = restAfter
