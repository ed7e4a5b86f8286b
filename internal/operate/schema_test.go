package operate

import (
	"fmt"
	"testing"
)

// TestSchemaOf: a schema names each field with its kinds and how many events have it, and no value.
func TestSchemaOf(t *testing.T) {
	t.Parallel()
	got := schemaOf([][]byte{
		[]byte(`{"name": "Eve", "address": {"city": "Bern"}, "items": [{"price": 1}, {"price": null}], "eve@example.com": true}`),
		[]byte(`{"name": null, "items": []}`),
		[]byte(`not JSON`), []byte(`"only a text"`),
	})
	want := `{4 1 [{address [object] 1} {address.city [string] 1} {items [array] 2} {items[] [object] 1} {items[].price [null number] 1} {name [null string] 2} {…@… [boolean] 1}]}`
	if fmt.Sprint(got) != want {
		t.Errorf("the schema is\n%v, want\n%s", got, want)
	}
}
