package events_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

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

// A new meaning is a new type, and both live side by side: old events keep the old one for ever. A mere new field needs none.
func ExampleDecode() {
	old := events.Event{Type: "order.paid", Key: "o-17", Data: []byte(`{"order_id": "o-17", "cents": 4200}`)}
	more := events.Event{Type: "order.paid", Key: "o-18", Data: []byte(`{"order_id": "o-18", "cents": 900, "voucher": "SPRING"}`)}
	v2 := events.Event{Type: "order.paid_v2", Key: "o-19", Data: []byte(`{"order_id": "o-19", "amount": "9.00", "currency": "EUR"}`)}
	for _, e := range []events.Event{old, more, v2} {
		switch e.Type {
		case "order.paid":
			paid, err := events.Decode[OrderPaid](e)
			fmt.Println(paid.OrderID, paid.Cents, err)
		case "order.paid_v2":
			paid, err := events.Decode[OrderPaidV2](e)
			fmt.Println(paid.OrderID, paid.Amount, paid.Currency, err)
		}
	}
	// Output:
	// o-17 4200 <nil>
	// o-18 900 <nil>
	// o-19 9.00 EUR <nil>
}

// OrderPaidV2 says in which currency an order was paid, which OrderPaid does not.
type OrderPaidV2 struct {
	OrderID  string `json:"order_id"`
	Amount   string `json:"amount"`
	Currency string `json:"currency"`
}

func (OrderPaidV2) EventType() string  { return "order.paid_v2" }
func (e OrderPaidV2) EventKey() string { return e.OrderID }

// An event of another type, or one with data that does not fit, is an error, which shows nothing of the data.
func ExampleDecode_errors() {
	id := uuid.MustParse("0192f0c1-5c5e-7000-8000-000000000017")
	_, err := events.Decode[OrderPaid](events.Event{ID: id, Type: "order.shipped", Data: []byte(`{}`)})
	fmt.Println(err)
	_, err = events.Decode[OrderPaid](events.Event{ID: id, Type: "order.paid", Data: []byte(`{"cents": "4200"}`)})
	fmt.Println(err)
	// Output:
	// decode event 0192f0c1-5c5e-7000-8000-000000000017: it is order.shipped, not order.paid
	// decode event 0192f0c1-5c5e-7000-8000-000000000017: cannot unmarshal string into field cents of type int64
}

// Measured is a payload in a form of its own. A message of protobuf has these methods in the same way.
type Measured struct {
	Sensor uint32
	Volts  uint32
}

func (Measured) EventType() string        { return "sensor.measured" }
func (m Measured) EventKey() string       { return fmt.Sprint("s-", m.Sensor) }
func (Measured) EventContentType() string { return "application/vnd.example.measured" }

func (m Measured) MarshalBinary() ([]byte, error) {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, m.Sensor), m.Volts), nil
}

func (m *Measured) UnmarshalBinary(data []byte) error {
	if len(data) != 8 {
		return errors.New("want 8 bytes")
	}
	m.Sensor, m.Volts = binary.BigEndian.Uint32(data), binary.BigEndian.Uint32(data[4:])
	return nil
}

// A payload that is not JSON.
func ExampleContentTyper() {
	e, err := events.New(Measured{Sensor: 3, Volts: 230})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(e.Type, e.Key, e.ContentType, len(e.Data), "bytes")

	m, err := events.Decode[Measured](e)
	fmt.Println(m.Volts, err)
	// Output:
	// sensor.measured s-3 application/vnd.example.measured 8 bytes
	// 230 <nil>
}

// The message by which an event travels, a CloudEvent in binary mode: what a consumer in another language reads.
func ExampleEvent_Message() {
	e := events.Event{
		ID: uuid.MustParse("0192f0c1-5c5e-7000-8000-000000000017"), Type: "order.paid", Key: "o-17",
		Source: "shop", Time: time.Date(2026, 5, 4, 12, 30, 0, 0, time.UTC),
		Header: map[string]string{"Tenant": "blue", "ce-region": "eu"},
		Data:   []byte(`{"order_id":"o-17","cents":4200}`),
	}
	subject, header, body := e.Message()
	fmt.Println(subject)
	for _, name := range slices.Sorted(maps.Keys(header)) {
		fmt.Println(name+":", header[name][0])
	}
	fmt.Println(string(body))
	// Output:
	// events.0d.order.paid
	// Pgjet-Seq: 0
	// Tenant: blue
	// ce-datacontenttype: application/json
	// ce-id: 0192f0c1-5c5e-7000-8000-000000000017
	// ce-region: eu
	// ce-source: shop
	// ce-specversion: 1.0
	// ce-subject: o-17
	// ce-time: 2026-05-04T12:30:00Z
	// ce-type: order.paid
	// {"order_id":"o-17","cents":4200}
}

// A message that a plain NATS subscriber got, without a consumer of pgjet.
func ExampleFromMessage() {
	header := map[string][]string{ // the Header of a nats.Msg
		"ce-specversion": {"1.0"},
		"ce-id":          {"0192f0c1-5c5e-7000-8000-000000000017"},
		"ce-source":      {"shop"},
		"ce-type":        {"order.paid"},
		"ce-subject":     {"o-17"},
		"ce-time":        {"2026-05-04T12:30:00Z"},
		"Pgjet-Seq":      {"12"},
	}
	e, err := events.FromMessage(header, []byte(`{"order_id":"o-17","cents":4200}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	paid, err := events.Decode[OrderPaid](e)
	fmt.Println(e.Source, e.Key, paid.Cents, err)

	delete(header, "ce-subject")
	_, err = events.FromMessage(header, nil)
	fmt.Println(err)
	// Output:
	// shop o-17 4200 <nil>
	// read event from message: header ce-subject is missing
}

// What can never be published is found without a database, such as in a test of a payload.
func ExampleEvent_Validate() {
	e, err := events.New(OrderPaid{OrderID: "o-\n17"})
	fmt.Println(err)
	fmt.Println(e.Validate())
	// Output:
	// <nil>
	// event key has control characters or invalid UTF-8
}

// All events of one key have the same partition in their subjects, and so stay in order.
func ExampleSubjectsOf() {
	orders := events.SubjectsOf("orders") // the Prefix of the relay and of the consumers
	fmt.Println(orders.Of("order.paid", "o-17"))
	fmt.Println(orders.Of("order.shipped", "o-17"))
	fmt.Println(orders.Of("order.paid", "o-18"))
	fmt.Println(orders.Filter("order.paid")) // for a NATS subscriber of one type
	fmt.Println(orders.All())                // for the stream
	// Output:
	// orders.0d.order.paid
	// orders.0d.order.shipped
	// orders.30.order.paid
	// orders.*.order.paid
	// orders.>
}

// The JSON Schemas of the payloads of this package.
func ExampleSchemas() {
	files, err := fs.Glob(events.Schemas, "schema/user.re*.json")
	fmt.Println(files, err)
	// Output: [schema/user.rejected.json schema/user.renamed.json] <nil>
}
