package events_test

import (
	"fmt"

	"github.com/pgjet/pgjet/events"
)

// OrderPaid is a payload of your own: a struct with two methods.
type OrderPaid struct {
	OrderID string `json:"order_id"`
	Cents   int64  `json:"cents"`
}

func (OrderPaid) EventType() string  { return "order.paid" }
func (e OrderPaid) EventKey() string { return e.OrderID }

func Example() {
	e, err := events.New(OrderPaid{OrderID: "o-17", Cents: 4200})
	if err != nil {
		fmt.Println(err)
		return
	}
	subject, _, body := e.Message()
	fmt.Println(subject)
	fmt.Println(string(body))

	paid, err := events.Decode[OrderPaid](e)
	fmt.Println(paid.Cents, err)
	// Output:
	// events.0d.order.paid
	// {"order_id":"o-17","cents":4200}
	// 4200 <nil>
}
