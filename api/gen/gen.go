// Package gen holds what `make generate` makes from api/hanok/v1; nothing else
// below it is written by hand.
package gen

import _ "embed"

// OpenAPI describes the API's JSON form.
//
//go:embed hanok/v1/openapi.json
var OpenAPI []byte
