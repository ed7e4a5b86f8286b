package producer

import (
	"bytes"
	"compress/gzip"
	"embed"
	"html/template"
	"io"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// docsFiles are the page and what it loads: the viewer Swagger UI 5.35.0, compressed.
//
//go:embed docs/page.* docs/vendor/*.gz
var docsFiles embed.FS

var docsTemplate = template.Must(template.ParseFS(docsFiles, "docs/page.html"))

// docsPolicy lets a browser load scripts, styles and data from this service alone. The viewer sets styles
// in the page, and has pictures in its style sheet.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// serveDocs serves the page for people: a viewer of the OpenAPI document in which requests can be tried out, and
// the problem codes.
func (s *Server) serveDocs() {
	var page bytes.Buffer
	err := docsTemplate.Execute(&page, struct {
		Info     *huma.Info
		Problems []problemCode
	}{s.api.OpenAPI().Info, problemCodes})
	if err != nil {
		panic(err) // the template is wrong
	}
	s.mux.Handle("GET /{$}", http.RedirectHandler("/docs", http.StatusFound))
	s.mux.HandleFunc("GET /docs", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", docsPolicy)
		w.Header().Set("Referrer-Policy", "no-referrer")
		_, _ = w.Write(page.Bytes()) // the client may be gone
	})
	for path, file := range map[string]string{
		"page.css": "page.css", "page.js": "page.js",
		"swagger-ui.css": "vendor/swagger-ui.css.gz", "swagger-ui-bundle.js": "vendor/swagger-ui-bundle.js.gz",
	} {
		s.mux.HandleFunc("GET /docs/"+path, serveFile("docs/"+file))
	}
}

// serveFile returns a handler that answers with a file of docsFiles. It unpacks a compressed one for a client that does not.
func serveFile(name string) http.HandlerFunc {
	data, err := docsFiles.ReadFile(name)
	if err != nil {
		panic(err) // it is embedded
	}
	plain, packed := strings.CutSuffix(name, ".gz")
	contentType := "text/javascript; charset=utf-8"
	if strings.HasSuffix(plain, ".css") {
		contentType = "text/css; charset=utf-8"
	}
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Cache-Control", "public, max-age=3600")
		w.Header().Set("Vary", "Accept-Encoding")
		content := io.Reader(bytes.NewReader(data))
		switch {
		case packed && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip"):
			w.Header().Set("Content-Encoding", "gzip")
		case packed:
			unpacked, err := gzip.NewReader(content)
			if err != nil {
				panic(err) // it is embedded
			}
			content = unpacked
		}
		_, _ = io.Copy(w, content) // the client may be gone
	}
}
