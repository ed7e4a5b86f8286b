package events

import "embed"

// Schemas holds the JSON Schema (2020-12) of each payload of this package, as
// schema/<type>.json. Fields that identify a person, such as a name, are marked with
// "$comment": "pii", which validators ignore. A schema does not forbid further fields: a
// later version may add some.
//
//go:embed schema/*.json
var Schemas embed.FS
