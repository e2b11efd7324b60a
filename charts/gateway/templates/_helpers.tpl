{{- define "gateway.name" -}}
{{ .Values.name | default .Release.Name }}
{{- end -}}

{{- define "gateway.account" -}}
{{ .Values.serviceAccount.name | default (include "gateway.name" .) }}
{{- end -}}

{{- define "gateway.selector" -}}
app: {{ .Values.labels.app | default (include "gateway.name" .) | quote }}
istio: {{ .Values.labels.istio | default (include "gateway.name" . | trimPrefix "istio-") | quote }}
{{- end -}}

{{- define "gateway.labels" -}}
{{ include "gateway.selector" . }}
app.kubernetes.io/name: {{ include "gateway.name" . }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/part-of: istio
{{- if .Values.networkGateway }}
topology.istio.io/network: {{ .Values.networkGateway | quote }}
{{- end }}
{{- range $name, $value := .Values.labels }}
{{- if and (ne $name "app") (ne $name "istio") }}
{{ $name }}: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end -}}
