package producer

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestProblemCodes: each code in the source of this package is described once, and each
// described code is in the source.
func TestProblemCodes(t *testing.T) {
	used := codesInSource(t)
	var described []string
	for _, c := range problemCodes {
		if slices.Contains(described, c.Code) {
			t.Errorf("codes.go describes %s twice", c.Code)
		}
		described = append(described, c.Code)
		if !slices.Contains(used, c.Code) {
			t.Errorf("codes.go describes %s, which nothing answers with", c.Code)
		}
	}
	for _, code := range used {
		if !slices.Contains(described, code) {
			t.Errorf("codes.go does not describe %s", code)
		}
	}
}

// codesInSource returns the texts at the places where codes stand.
func codesInSource(t *testing.T) (codes []string) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	place := map[string]int{"newProblem": 1, "unavailableProblem": 0, "bad": 0}
	keep := func(e ast.Expr) {
		if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if code, err := strconv.Unquote(lit.Value); err == nil && !slices.Contains(codes, code) {
				codes = append(codes, code)
			}
		}
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if fn, ok := n.Fun.(*ast.Ident); ok {
					if i, ok := place[fn.Name]; ok && i < len(n.Args) {
						keep(n.Args[i])
					}
				}
			case *ast.CompositeLit:
				if typ, ok := n.Type.(*ast.Ident); ok && typ.Name == "FieldError" {
					for i, e := range n.Elts {
						if kv, ok := e.(*ast.KeyValueExpr); !ok && i == 1 {
							keep(e)
						} else if ok && kv.Key.(*ast.Ident).Name == "Code" {
							keep(kv.Value)
						}
					}
				}
			}
			return true
		})
	}
	return codes
}
