package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// plugins turn the compiled files into Go, in the order of the API's layers.
var plugins = []struct{ tool, options string }{
	{"protoc-gen-go", "paths=source_relative"},
	{"protoc-gen-connect-go", "paths=source_relative,simple=true"},
}

func main() {
	root := flag.String("root", ".", "the module's directory")
	out := flag.String("out", "", "where to write (default api/gen below root)")
	flag.Parse()
	if *out == "" {
		*out = filepath.Join(*root, "api", "gen")
	}
	if err := run(*root, *out); err != nil {
		fmt.Fprintln(os.Stderr, "apigen:", err)
		os.Exit(1)
	}
}

// run generates everything into out, and removes what is not generated any more.
func run(root, out string) error {
	files, err := compile(filepath.Join(root, "api"))
	if err != nil {
		return err
	}
	made := map[string][]byte{}
	for _, p := range plugins {
		if err := generate(root, p.tool, p.options, files, made); err != nil {
			return fmt.Errorf("%s: %w", p.tool, err)
		}
	}
	if made["hanok/v1/openapi.json"], err = openAPI(files); err != nil {
		return fmt.Errorf("OpenAPI: %w", err)
	}
	if err := os.RemoveAll(filepath.Join(out, "hanok")); err != nil {
		return err
	}
	for name, content := range made {
		path := filepath.Join(out, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// compile reads the API's files, comments included.
func compile(dir string) (linker.Files, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "hanok", "v1", "*.proto"))
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, errors.New("no .proto files in " + dir)
	}
	sort.Strings(paths)
	names := make([]string, len(paths))
	for i, p := range paths {
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return nil, err
		}
		names[i] = filepath.ToSlash(rel)
	}
	c := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{dir}}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	return c.Compile(context.Background(), names...)
}

// generate runs one plugin, a tool of this module, and collects its files.
func generate(root, tool, options string, files linker.Files, made map[string][]byte) error {
	req := &pluginpb.CodeGeneratorRequest{Parameter: proto.String(options)}
	seen := map[string]bool{}
	var add func(fd protoreflect.FileDescriptor)
	add = func(fd protoreflect.FileDescriptor) {
		if seen[fd.Path()] {
			return
		}
		seen[fd.Path()] = true
		for i := range fd.Imports().Len() {
			add(fd.Imports().Get(i).FileDescriptor)
		}
		req.ProtoFile = append(req.ProtoFile, descriptorOf(fd))
	}
	for _, f := range files {
		add(f)
		req.FileToGenerate = append(req.FileToGenerate, f.Path())
	}
	in, err := proto.Marshal(req)
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "tool", tool)
	cmd.Dir = root
	cmd.Stdin = bytes.NewReader(in)
	cmd.Stderr = os.Stderr
	answer, err := cmd.Output()
	if err != nil {
		return err
	}
	var resp pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(answer, &resp); err != nil {
		return err
	}
	if resp.Error != nil {
		return errors.New(resp.GetError())
	}
	for _, f := range resp.File {
		if strings.Contains(f.GetName(), "..") {
			return fmt.Errorf("a file named %q", f.GetName())
		}
		made[f.GetName()] = []byte(f.GetContent())
	}
	return nil
}

// descriptorOf is the file as plugins take it: options in bytes, so that the
// plugin reads extensions with its own types.
func descriptorOf(fd protoreflect.FileDescriptor) *descriptorpb.FileDescriptorProto {
	d := protodesc.ToFileDescriptorProto(fd)
	if r, ok := fd.(linker.Result); ok {
		d = r.FileDescriptorProto()
	}
	return d
}
