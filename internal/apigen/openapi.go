package main

import (
	"encoding/json"
	"strings"

	"github.com/bufbuild/protocompile/linker"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

type object = map[string]any

// openAPI describes the JSON form of the API (OpenAPI 3.1): what protojson
// reads and writes, and the errors of the Connect protocol.
func openAPI(files linker.Files) ([]byte, error) {
	g := &openapi{paths: object{}, schemas: object{}}
	var tags []object
	for _, f := range files {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			tags = append(tags, object{"name": string(s.Name()), "description": comment(s)})
			for j := range s.Methods().Len() {
				g.method(s, s.Methods().Get(j))
			}
		}
	}
	g.schemas["connect.error"] = object{
		"type": "object", "description": "An error, with the code's HTTP status.",
		"properties": object{
			"code":    object{"type": "string", "description": "Such as invalid_argument, not_found, aborted, permission_denied, unauthenticated."},
			"message": object{"type": "string"},
			"details": object{"type": "array", "items": object{"type": "object", "properties": object{
				"type":  object{"type": "string", "description": "hanok.v1.FieldErrors, hanok.v1.Stale or hanok.v1.Remedy"},
				"value": object{"type": "string", "description": "The message in protobuf, base64."},
				"debug": object{"type": "object", "description": "The same as JSON."}}}},
		},
	}
	doc := object{
		"openapi": "3.1.0",
		"info": object{"title": "Hanok", "version": "v1",
			"description": "JSON over HTTP POST. The same services answer gRPC and gRPC-Web. docs/api.md has worked examples."},
		"tags": tags, "paths": g.paths, "components": object{"schemas": g.schemas,
			"securitySchemes": object{"token": object{"type": "http", "scheme": "bearer"}}},
		"security": []object{{"token": []string{}}},
	}
	b, err := json.MarshalIndent(doc, "", " ")
	return append(b, '\n'), err
}

type openapi struct{ paths, schemas object }

func (g *openapi) method(s protoreflect.ServiceDescriptor, m protoreflect.MethodDescriptor) {
	media := "application/json"
	description := comment(m)
	if m.IsStreamingServer() {
		media = "application/connect+json"
		description += "\n\nA stream of envelopes: one byte of flags (2 marks the end), four bytes of length, big endian, then JSON."
	}
	op := object{
		"tags": []string{string(s.Name())}, "operationId": string(s.Name()) + "." + string(m.Name()), "description": strings.TrimSpace(description),
		"requestBody": object{"required": true, "content": object{media: object{"schema": g.ref(m.Input())}}},
		"responses": object{
			"200":     object{"description": "Done", "content": object{media: object{"schema": g.ref(m.Output())}}},
			"default": object{"description": "Refused or failed", "content": object{"application/json": object{"schema": object{"$ref": "#/components/schemas/connect.error"}}}},
		},
	}
	g.paths["/"+string(s.FullName())+"/"+string(m.Name())] = object{"post": op}
}

// ref points to a message's schema, making it when it is met first.
func (g *openapi) ref(m protoreflect.MessageDescriptor) object {
	name := string(m.FullName())
	if name == "google.protobuf.Timestamp" {
		return object{"type": "string", "format": "date-time"}
	}
	if _, ok := g.schemas[name]; !ok {
		schema := object{"type": "object"}
		g.schemas[name] = schema // before its fields, which may lead back here
		if c := comment(m); c != "" {
			schema["description"] = c
		}
		props := object{}
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			p := g.field(f)
			if c := comment(f); c != "" {
				p["description"] = c
			}
			props[f.JSONName()] = p
		}
		if len(props) > 0 {
			schema["properties"] = props
		}
	}
	return object{"$ref": "#/components/schemas/" + name}
}

func (g *openapi) field(f protoreflect.FieldDescriptor) object {
	switch {
	case f.IsMap():
		return object{"type": "object", "additionalProperties": g.single(f.MapValue())}
	case f.IsList():
		return object{"type": "array", "items": g.single(f)}
	}
	return g.single(f)
}

func (g *openapi) single(f protoreflect.FieldDescriptor) object {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return object{"type": "boolean"}
	case protoreflect.EnumKind:
		var names []string
		for i := range f.Enum().Values().Len() {
			names = append(names, string(f.Enum().Values().Get(i).Name()))
		}
		return object{"type": "string", "enum": names}
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind:
		return object{"type": "integer", "format": "int32"}
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind:
		return object{"type": "string", "format": "int64"} // as protojson writes them
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return object{"type": "number"}
	case protoreflect.BytesKind:
		return object{"type": "string", "format": "byte"}
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return g.ref(f.Message())
	default:
		return object{"type": "string"}
	}
}

// comment is what stands above a declaration.
func comment(d protoreflect.Descriptor) string {
	c := d.ParentFile().SourceLocations().ByDescriptor(d).LeadingComments
	lines := strings.Split(c, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimPrefix(l, " ")
	}
	s := strings.TrimSpace(strings.Join(lines, "\n"))
	if o, ok := d.Options().(*descriptorpb.MethodOptions); ok && o.GetDeprecated() {
		s = strings.TrimSpace("Deprecated. " + s)
	}
	return s
}
