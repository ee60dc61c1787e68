// Renders chats with Go's own text/template and the values that Ollama gives its templates.
// Input: lines of JSON with template, messages, tools and think. Output: a line of JSON for each, a text or an error.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type arguments map[string]any

type call struct {
	ID       string `json:"id"`
	Function struct {
		Index     int
		Name      string    `json:"name"`
		Arguments arguments `json:"arguments"`
	} `json:"function"`
}

type message struct {
	Role       string   `json:"role"`
	Content    string   `json:"content"`
	Thinking   string   `json:"reasoning_content"`
	Images     [][]byte `json:"images"`
	ToolCalls  []call   `json:"tool_calls"`
	ToolName   string   `json:"name"`
	ToolCallID string   `json:"tool_call_id"`
}

type property struct {
	AnyOf       []property          `json:"anyOf,omitempty"`
	Type        any                 `json:"type,omitempty"`
	Items       any                 `json:"items,omitempty"`
	Description string              `json:"description,omitempty"`
	Enum        []any               `json:"enum,omitempty"`
	Properties  map[string]property `json:"properties,omitempty"`
}

type tool struct {
	Type     string `json:"type"`
	Function struct {
		Name        string `json:"name"`
		Description string `json:"description"`
		Parameters  struct {
			Type       string              `json:"type"`
			Required   []string            `json:"required"`
			Properties map[string]property `json:"properties"`
		} `json:"parameters"`
	} `json:"function"`
}

type input struct {
	Template string    `json:"template"`
	Messages []message `json:"messages"`
	Tools    []tool    `json:"tools"`
	Think    *bool     `json:"think"`
}

func render(in input) (string, error) {
	funcs := template.FuncMap{"json": func(value any) string {
		text, _ := json.Marshal(value)
		return string(text)
	}}
	parsed, err := template.New("").Option("missingkey=zero").Funcs(funcs).Parse(in.Template)
	if err != nil {
		return "", err
	}
	var system []string
	var messages []*message
	for i := range in.Messages {
		one := &in.Messages[i]
		if one.Role == "system" {
			system = append(system, one.Content)
		}
		if last := len(messages) - 1; last >= 0 && messages[last].Role == one.Role && one.Role != "tool" {
			messages[last].Content += "\n\n" + one.Content
		} else {
			messages = append(messages, one)
		}
	}
	var out bytes.Buffer
	err = parsed.Execute(&out, map[string]any{
		"System":     strings.Join(system, "\n\n"),
		"Messages":   messages,
		"Tools":      in.Tools,
		"Response":   "",
		"Think":      in.Think != nil && *in.Think,
		"ThinkLevel": "",
		"IsThinkSet": in.Think != nil,
	})
	return out.String(), err
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<26)
	for lines.Scan() {
		var in input
		found := map[string]string{}
		if err := json.Unmarshal(lines.Bytes(), &in); err != nil {
			found["error"] = err.Error()
		} else if text, err := render(in); err != nil {
			found["error"] = err.Error()
		} else {
			found["text"] = text
		}
		line, _ := json.Marshal(found)
		os.Stdout.Write(append(line, '\n'))
	}
}
